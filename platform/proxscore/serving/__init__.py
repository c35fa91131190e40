"""Saved posteriors at work: whole tables predicted by many workers, and answers over HTTP."""
