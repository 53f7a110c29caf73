package org.lora4j.cli;

import java.nio.file.Path;

/**
 * What a demo run works on.
 *
 * @param base checkpoint folder of the base model, Hugging Face format
 * @param tasks folder with {@code <task>.train.jsonl} and {@code <task>.heldout.jsonl}
 * @param out folder for everything the run writes
 * @param steps optimiser steps for each adapter
 * @param rank rank of the adapters
 * @param seed seeds the adapters' start, the order of the examples and the sampling
 */
record DemoSettings(Path base, Path tasks, Path out, int steps, int rank, long seed) {}
