"""Pictures of what a model does, how a run learns, and how two systems differ."""
