"""moesim: discrete-event simulator and performance modeler for Mixture-of-Experts models."""

__version__ = "0.1.0"
