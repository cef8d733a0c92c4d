"""The doors to the outside, as Dagster resources: task folders, lake, completion store, model folder, teacher."""
