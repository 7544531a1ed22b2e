"""Classifier for programs: many threads, streams with bad frames, features, counters, ends of all kinds."""

from __future__ import annotations

import gc
import os
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from full_models import CONTRACT, NETWORK, full_model, probabilities
from sticks import lively_weights

from gti.chip.emulator.emulator import Emulator
from gti.chip.runtime import classifier
from gti.chip.runtime.classifier import Classifier
from gti.chip.runtime.dispatch import Dispatcher
from gti.errors import DeviceError, FormatError, ImageError, UsageError

PICTURES = np.random.RandomState(6).randint(0, 256, (6, 20, 24, 3)).astype(np.uint8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "full.model"
    file.write_bytes(full_model())
    return file


def codes(order: str) -> np.ndarray:
    prepared = np.stack([CONTRACT.apply(picture, order) for picture in PICTURES])
    return Emulator(NETWORK, lively_weights(NETWORK, 1), engine="numpy").output(prepared)


def close(labels: list[classifier.Label], wanted: np.ndarray) -> bool:
    return all(abs(label.probability - wanted[label.index]) < 1e-4 for label in labels) and len(labels) == len(wanted)


def test_callers_of_several_threads_each_get_their_own_answer(path: Path):
    wanted = [probabilities(one) for one in codes("RGB")]
    reversed_wanted = [probabilities(one) for one in codes("BGR")]
    assert max(np.ptp(wanted, axis=0)) > 0.01
    with Classifier(path, "virtual") as model, ThreadPoolExecutor(8) as threads:
        numbers = [n % len(PICTURES) for n in range(48)]
        answers = list(threads.map(lambda n: model.classify_one(PICTURES[n]), numbers))
        assert all(close(answer, wanted[n]) for n, answer in zip(numbers, answers, strict=True))
        assert close(model.classify_one(PICTURES[0], order="BGR"), reversed_wanted[0])
        futures = [model.submit(picture) for picture in PICTURES]
        assert all(close(future.result(60), one) for future, one in zip(futures, wanted, strict=True))
        np.testing.assert_allclose(model.features(PICTURES[1]), codes("RGB")[1].mean(axis=(1, 2)), rtol=1e-6)
        assert model.counters["frames"] == 48 + 1 + 6 + 1
        assert model.counters["faults"] == 0
        assert model.state == "ready"
    assert model.state == "released"
    with pytest.raises(DeviceError, match="released"):
        model.classify_one(PICTURES[0])


def test_a_bad_frame_does_not_end_the_stream(path: Path, tmp_path: Path):
    wanted = [probabilities(one) for one in codes("RGB")]
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8 no picture")
    frames = [("a", PICTURES[0]), ("float", PICTURES[0] / 255.0), ("b", PICTURES[1])]
    frames += [("file", tmp_path / "bad.jpg"), ("gone", tmp_path / "gone.png"), ("c", PICTURES[2])]
    with Classifier(path, ["virtual"]) as model:
        found = dict(model.classify_many(frames))  # type: ignore[arg-type]
        assert list(found) == [key for key, _ in frames]
        assert isinstance(found["float"], ImageError)
        assert isinstance(found["file"], FormatError)
        assert isinstance(found["gone"], FormatError)
        for key, number in (("a", 0), ("b", 1), ("c", 2)):
            answer = found[key]
            assert isinstance(answer, list)
            assert close(answer, wanted[number])
        assert model.counters["refused"] == 3


def test_groups_of_the_emulator_keep_the_order(path: Path):
    """More frames than are computed together, every seventh of another type; who stops early cancels what waits."""
    wanted = [probabilities(one) for one in codes("RGB")]
    numbers = [number % len(PICTURES) for number in range(150)]
    frames = [(n, PICTURES[i] / 255.0 if n % 7 == 3 else PICTURES[i]) for n, i in enumerate(numbers)]
    with Classifier(path, "emulator") as model:
        assert 1 < model.together < len(frames)
        found = list(model.classify_many(frames))  # type: ignore[arg-type]
        assert [key for key, _ in found] == list(range(150))
        for (key, answer), number in zip(found, numbers, strict=True):
            assert isinstance(answer, ImageError) if key % 7 == 3 else close(answer, wanted[number])
        refused = len([n for n, _ in frames if n % 7 == 3])
        assert (model.counters["frames"], model.counters["refused"]) == (150 - refused, refused)
        stream = model.classify_many(frames)  # type: ignore[arg-type]
        next(stream)
        stream.close()
        assert close(model.classify_one(PICTURES[0]), wanted[0])


def test_groups_never_leave_a_batch_of_the_emulator_with_a_rest(path: Path, monkeypatch: pytest.MonkeyPatch):
    """One group at most is smaller than a batch for want of work; the next one fills that batch, not another."""
    sizes: list[int] = []
    submit = Dispatcher.submit_together

    def noted(self: Dispatcher, images: list, finish):
        sizes.append(len(images))
        return submit(self, images, finish)

    monkeypatch.setattr(Dispatcher, "submit_together", noted)
    frames = [(n, PICTURES[n % len(PICTURES)]) for n in range(200)]
    with Classifier(path, "emulator") as model:
        alone = [model.classify_one(picture) for picture in PICTURES]
        assert [labels for _, labels in model.classify_many(frames)] == [alone[n % len(alone)] for n, _ in frames]
        ends = set(np.cumsum(sizes).tolist())
        assert ends >= {200, *range(model.together, 200, model.together)}


def test_a_stream_has_the_stick_for_itself(path: Path):
    with Classifier(path, "virtual") as model, ThreadPoolExecutor(1) as threads:
        stream = model.classify(model.preprocessing.apply(picture, "RGB") for picture in PICTURES)
        first = next(stream)
        with pytest.raises(UsageError, match="iterator"):
            model.classify_one(PICTURES[0])
        other = threads.submit(model.classify_one, PICTURES[0])
        assert len(list(stream)) == len(PICTURES) - 1
        assert other.result(60) == first


def test_a_frame_that_fails_takes_no_other_with_it(path: Path, monkeypatch: pytest.MonkeyPatch):
    with Classifier(path, "virtual") as model:
        wanted = [model.classify_one(picture) for picture in PICTURES]
        link = model._sticks._link  # type: ignore[union-attr]
        finish, calls = link.finish, [0]

        def failing() -> bytes:
            calls[0] += 1
            data = finish()
            if calls[0] == 3:
                link.abandon()
                raise DeviceError("stick", "was pulled out")
            return data

        monkeypatch.setattr(link, "finish", failing)
        futures = [model.submit(picture) for picture in PICTURES]
        with pytest.raises(DeviceError, match="pulled"):
            futures[2].result(60)
        assert [future.result(60) for n, future in enumerate(futures) if n != 2] == [*wanted[:2], *wanted[3:]]
        assert model.counters["failed"] == 1
        assert (model.state, model.problem) == ("ready", "")


def test_a_classifier_that_nobody_has_is_given_back(path: Path):
    model = Classifier(path, "virtual")
    model.classify_one(PICTURES[0])
    sticks, alive = weakref.ref(model._sticks), weakref.ref(model)
    thread = model._queue._thread
    assert thread is not None
    del model
    gc.collect()
    assert alive() is None
    thread.join(60)
    assert not thread.is_alive()
    gc.collect()
    assert sticks() is None


def test_frames_that_wait_are_cancelled_at_the_end(path: Path, monkeypatch: pytest.MonkeyPatch):
    model = Classifier(path, "virtual")
    monkeypatch.setattr(classifier, "_PATIENCE_S", 0.05)
    holding, leave = threading.Event(), threading.Event()
    link = model._sticks._link  # type: ignore[union-attr]
    finish = link.finish

    def slow() -> bytes:
        holding.set()
        leave.wait(60)
        return finish()

    monkeypatch.setattr(link, "finish", slow)
    futures = [model.submit(PICTURES[0]) for _ in range(3)]
    assert holding.wait(60)
    model.release()
    leave.set()
    thread = model._queue._thread
    assert thread is not None
    thread.join(60)
    assert futures[-1].cancelled()
    with pytest.raises(DeviceError, match="released"):
        model._sticks.counts  # noqa: B018  (the thread has released the stick when the frame was over)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_child_of_a_fork_is_told_so(path: Path):
    with Classifier(path, "virtual") as model:
        wanted = model.classify_one(PICTURES[0])
        child = os.fork()
        if child == 0:
            try:
                model.classify_one(PICTURES[0])
            except DeviceError as problem:
                os._exit(7 if "fork" in str(problem) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert model.classify_one(PICTURES[0]) == wanted
