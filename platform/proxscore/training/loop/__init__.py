"""The loop: it trains any method on any task, and evaluates what is left; ``fit.py`` is where its steps are."""
