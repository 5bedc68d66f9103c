"""Claims: the only place that knows data, baselines and budgets."""
