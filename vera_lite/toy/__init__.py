"""The playground: a rendered world, its words and questions."""
