"""What was counted, in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gti.serve.app import Server


def text(server: Server) -> str:
    """Return all metrics."""
    model = server.model
    counters = dict(model.counters)
    lines: list[str] = []

    def metric(name: str, kind: str, about: str, *samples: tuple[str, float]) -> None:
        lines.extend([f"# HELP gti_{name} {about}", f"# TYPE gti_{name} {kind}"])
        lines.extend(f"gti_{name}{labels} {value:.10g}" for labels, value in samples)

    metric("up", "gauge", "Whether the last frame was answered.", ("", float(not model.problem)))
    metric("waiting", "gauge", "Requests in work.", ("", server.waiting))
    metric("frames_total", "counter", "Frames that were computed.", ("", counters.pop("frames", 0)))
    metric("failed_total", "counter", "Frames without a result.", ("", counters.pop("failed", 0)))
    counters.pop("refused", None)
    stick = [(f'{{event="{_quoted(name)}"}}', float(count)) for name, count in sorted(counters.items())]
    if stick:
        metric("stick_events_total", "counter", "What the stick did beside answering.", *stick)
    reasons = [(f'{{reason="{name}"}}', float(count)) for name, count in sorted(server.rejected.items())]
    metric("rejected_total", "counter", "Requests that were not answered, by reason.", *reasons)
    lines += [
        "# HELP gti_answer_seconds From a picture's arrival to its answer.",
        "# TYPE gti_answer_seconds summary",
        f"gti_answer_seconds_sum {server.answer_s:.10g}",
        f"gti_answer_seconds_count {server.answers}",
    ]
    return "\n".join(lines) + "\n"


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
