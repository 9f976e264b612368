"""From measured times of collectives and exchanges to parameters of curves and forms; numpy only."""
