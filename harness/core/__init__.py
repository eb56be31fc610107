"""Plain values that every other room shares: errors, cells, shapes, budgets, costs, statistics. No torch."""
