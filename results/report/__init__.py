"""The parts of results/aggregate.py, in the order of the data: logs, paper, statistics, cells, tables, formats, pages, figures."""
