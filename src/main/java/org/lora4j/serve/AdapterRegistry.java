package org.lora4j.serve;

import java.nio.file.Path;
import java.util.List;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ConcurrentMap;
import java.util.concurrent.atomic.AtomicLong;
import org.jspecify.annotations.Nullable;

/**
 * The adapters a server knows, by name: where their files are and which version a name means. It holds no weights, so
 * thousands cost nothing. Safe for several threads.
 */
public final class AdapterRegistry {
    private static final int LONGEST_NAME = 256;

    private final ConcurrentMap<String, AdapterEntry> entries = new ConcurrentHashMap<>();
    /** Of all names together, so that no version of a name ever comes back, not even after it was removed. */
    private final AtomicLong versions = new AtomicLong();

    private final AdapterResolver resolver;

    /** A registry that knows only what is registered. */
    public AdapterRegistry() {
        this(name -> null);
    }

    /** @param resolver asked for names that are not registered; what it finds is registered */
    public AdapterRegistry(AdapterResolver resolver) {
        this.resolver = resolver;
    }

    /**
     * Adds an adapter.
     *
     * @throws IllegalArgumentException if the name is taken, empty, longer than 256 characters or has control characters
     */
    public AdapterEntry register(String name, Path path) {
        AdapterEntry entry = candidate(name, path);
        AdapterEntry before = entries.putIfAbsent(name, entry);
        if (before != null) {
            throw new IllegalArgumentException("there is an adapter \"" + name + "\" already, from " + before.path()
                    + ": replace it (load_inplace), unload it first or use another name");
        }
        return entry;
    }

    /** A new version of a name that {@link #find} does not give until it is published. */
    AdapterEntry candidate(String name, Path path) {
        if (name.isEmpty()
                || name.length() > LONGEST_NAME
                || name.chars().anyMatch(Character::isISOControl)
                || name.isBlank()) {
            throw new IllegalArgumentException("an adapter cannot be called \"" + name + "\": use 1 to " + LONGEST_NAME
                    + " characters, not all blank and none of them a control character");
        }
        return new AdapterEntry(name, versions.incrementAndGet(), path);
    }

    /** Makes an entry what its name means, unless a newer one is. */
    void publish(AdapterEntry entry) {
        entries.merge(entry.name(), entry, (old, fresh) -> old.version() > fresh.version() ? old : fresh);
    }

    /**
     * Forgets an adapter.
     *
     * @return the entry it had
     * @throws UnknownAdapterException if there is none of this name
     */
    public AdapterEntry remove(String name) {
        AdapterEntry entry = entries.remove(name);
        if (entry == null) {
            throw new UnknownAdapterException(name, entries.size());
        }
        return entry;
    }

    /** The adapter registered under a name, without asking the resolver; null if there is none. */
    public @Nullable AdapterEntry registered(String name) {
        return entries.get(name);
    }

    /** The adapter of a name, which the resolver may find; null if there is none. */
    public @Nullable AdapterEntry find(String name) {
        AdapterEntry known = entries.get(name);
        if (known != null) {
            return known;
        }
        Path path = resolver.find(name);
        return path == null ? null : entries.computeIfAbsent(name, absent -> candidate(name, path));
    }

    /**
     * The adapter of a name.
     *
     * @throws UnknownAdapterException if there is none
     */
    public AdapterEntry get(String name) {
        AdapterEntry found = find(name);
        if (found == null) {
            throw new UnknownAdapterException(name, entries.size());
        }
        return found;
    }

    /** Whether an entry is what its name means now. */
    boolean isCurrent(AdapterEntry entry) {
        return entry.equals(entries.get(entry.name()));
    }

    /** All registered adapters, by name. */
    public List<AdapterEntry> entries() {
        return entries.values().stream()
                .sorted(java.util.Comparator.comparing(AdapterEntry::name))
                .toList();
    }

    /** How many adapters are registered. */
    public int size() {
        return entries.size();
    }
}
