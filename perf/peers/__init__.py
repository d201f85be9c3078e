"""Other engines that the benchmark runs beside this one: programs of their own, which import nothing of Shardyard."""
