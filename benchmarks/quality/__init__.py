"""What distillation keeps, measured on real text with a real teacher: `make quality`.

A row of the table is one file in `rows/`: it trains and measures with the public API, for each of three seeds. `row.py`
says what a row is and what it claims, `place.py` where text and teachers come from, `training.py` how a model is
trained, `runner.py` what makes it go on after a kill, `report.py` how docs/quality.md is written from `results/*.json`.
"""
