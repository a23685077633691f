"""Teachers: one adapter a dialect, all behind `adapter.Adapter`."""
