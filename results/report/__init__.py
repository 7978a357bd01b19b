"""The parts of results/aggregate.py, in the order of the data.

logs, paper; rules, statistics; cells; tables, evidence, costs, audit; formats, figures, pages.
"""
