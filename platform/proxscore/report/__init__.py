"""The uncertainty report: what of a posterior's predictions can be trusted, as a page and as JSON."""
