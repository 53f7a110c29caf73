/** Decoder-only language models on LibTorch modules, loaded from Hugging Face checkpoints. */
@NullMarked
package org.lora4j.model.causal;

import org.jspecify.annotations.NullMarked;
