"""Physical forms of kernel times: pure functions of named quantities and a few parameters."""
