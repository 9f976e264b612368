"""Small closed formulas about training: work, efficiency leverage, cost, how experts grow; pure functions."""
