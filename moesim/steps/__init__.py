"""From a model, a plan and a routed batch to the stream program that an engine would launch."""
