"""The parts of a model at work: on the device while they are used, in the dtype that they compute in."""
