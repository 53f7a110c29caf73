/** The HTTP server of a host of adapters: OpenAI's endpoints, those of vLLM that load adapters, metrics, a page. */
@NullMarked
package org.lora4j.serve.http;

import org.jspecify.annotations.NullMarked;
