"""From a request to sealed cells: settings, jobs, and one pass over the samples."""
