"""Methods x seeds on one task at an equal budget of gradient evaluations, as Ray tasks; see ``jobs/compare.py``.

settings    the YAML file
budget      steps of each method for the same number of gradient evaluations
plan        the cells (method, learning rate, seed), and what is refused before the first one
cell        one cell in a process of its own
driver      cells side by side on Ray; the learning rates that validation data prefer
table       CSV and Markdown
figure      reliability and risk-coverage curves
"""
