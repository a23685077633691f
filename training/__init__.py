"""The student side: reads published datasets, never the services or the pipelines that made them."""
