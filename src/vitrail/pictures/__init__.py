"""Pictures of users as they are read, and cut into tiles for the viewer that pages share."""
