/** Bytes on disk: safetensors and adapter_config.json, validated before they are read. Knows no tensors. */
@NullMarked
package org.lora4j.format;

import org.jspecify.annotations.NullMarked;
