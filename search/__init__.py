"""A job: a spec in, a comparison, a report and a pruned network out."""
