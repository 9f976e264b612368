"""From measured times of collectives and exchanges to the parameters of their curves and forms; numpy only."""
