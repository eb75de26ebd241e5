"""What a run leaves on disk: records, per-frame labels, the manifest and the summary. Imports no Ray and no model."""
