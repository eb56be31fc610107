"""Tables, comparisons and figures from sealed cells. No torch."""
