"""Before anything long begins: what a run needs, whether it is there, and what one step would take."""
