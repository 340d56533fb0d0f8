"""Makes a sweep happen: a runner claims it, a driver runs its trials on Ray Tune. The only room with Ray."""
