"""The parts of tools/report/make.py, in the order of the data.

logs, paper; rules, statistics; cells; tables, evidence, costs, audit; formats, figures, pages.
"""
