"""What a run does around training: launch, callbacks, tracking, pipelines, reports."""
