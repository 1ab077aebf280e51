"""The tabs of the page, one module each: a `build` that lays it out, and the work that its button starts."""
