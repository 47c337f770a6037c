"""Layered training data from raw clips: stages, a store that loses nothing, engines, public layouts."""
