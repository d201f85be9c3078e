"""The embedded CPU engine: network, collectives, paged KV cache, scheduler, sampler, executor, worker."""
