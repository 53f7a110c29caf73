package org.lora4j.serve;

/**
 * What identifies the weights of an adapter. A name alone does not: it may be given to other weights later.
 *
 * @param name the name requests use
 * @param version counts the weights the name has had, from 1
 * @param hash SHA-256 of what the adapter computes with, see {@link org.lora4j.model.AdapterImage#hash}
 */
public record AdapterId(String name, long version, String hash) {
    @Override
    public String toString() {
        return name + "@" + version + " (" + hash.substring(0, Math.min(12, hash.length())) + ")";
    }
}
