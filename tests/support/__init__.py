"""What tests of several rooms share: toy worlds, generated data, deliberately broken things."""
