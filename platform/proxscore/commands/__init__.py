"""The commands: each module has ``main(arguments)``, which returns the exit status; ``main`` dispatches ``proxscore COMMAND``.

The scripts in ``jobs/`` call the same functions. A module of this package imports next to nothing at its top: Ray, torch and
MLflow take seconds, which neither ``--help`` nor an error of the command line should cost.
"""
