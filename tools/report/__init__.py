"""The parts of tools/report/make.py, in the order of the data.

logs (with settings), paper, costs; inference (with rules); rows, comparisons; tables, claims,
audit; evidence; formats, figures, pages. texts.py is a command of its own.
"""
