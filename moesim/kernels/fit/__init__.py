"""Fitting physical forms to measured tables (needs the calibration extra)."""
