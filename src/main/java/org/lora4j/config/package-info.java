/** What the user asks for: an immutable {@code LoraConfig} that cannot be built wrong. */
@NullMarked
package org.lora4j.config;

import org.jspecify.annotations.NullMarked;
