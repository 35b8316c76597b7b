"""Twin experiments with generated models, small enough that a long reference of the posterior is to be had."""
