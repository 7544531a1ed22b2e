"""The report: one self-contained HTML page about a network on its way to the chip.

Each script that takes `--report DIR` adds its part with `gti.report.store.add`; the page shows all parts found in DIR.
"""
