package org.lora4j.serve;

import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;

/**
 * Who has which page of the cache, and which pages hold tokens that later prompts may begin with. For one thread.
 *
 * <p>A full page is known by its tokens and the page before it, the first by what adapters computed it with: pages are
 * compared, not hashes, so two prefixes are never taken for each other. Pages nobody uses are given away when room is
 * needed, the least recently used first.
 */
final class PagePool {
    /** What a page holds: its tokens after those of another page, or after an adapter's beginning. */
    private record Content(long before, List<Long> tokens) {}

    private final int pageTokens;
    private final int[] users;
    private final @Nullable Content[] contents;
    /** For pages with known contents a number no other content ever has. */
    private final long[] serials;

    private final ArrayDeque<Integer> free = new ArrayDeque<>();
    private final LinkedHashSet<Integer> idle = new LinkedHashSet<>();
    private final Map<Content, Integer> known = new HashMap<>();
    private final Map<Object, Long> beginnings = new HashMap<>();
    private long nextSerial = 1;
    private int reserved;
    long hits;
    long lookups;

    PagePool(int pages, int pageTokens) {
        this.pageTokens = pageTokens;
        this.users = new int[pages];
        this.contents = new Content[pages];
        this.serials = new long[pages];
        for (int i = 0; i < pages; i++) {
            free.add(i);
        }
    }

    /** Pages that this many tokens need. */
    int pagesFor(int tokens) {
        return (tokens + pageTokens - 1) / pageTokens;
    }

    /** Promises pages to a request, so that it never has to wait for one later. */
    boolean reserve(int pages) {
        if (reserved + pages > users.length) {
            return false;
        }
        reserved += pages;
        return true;
    }

    void unreserve(int pages) {
        reserved -= pages;
    }

    int reserved() {
        return reserved;
    }

    /** Pages with known contents that nobody uses. */
    int idle() {
        return idle.size();
    }

    /**
     * The pages a prompt may begin with, which the caller has then; all but the last token at most.
     *
     * @param root what the tokens are computed with
     */
    List<Integer> match(Object root, long[] prompt) {
        List<Integer> pages = new ArrayList<>();
        Long before = beginnings.get(root);
        for (int end = pageTokens; before != null && end < prompt.length; end += pageTokens) {
            Integer page = known.get(content(before, prompt, end - pageTokens));
            if (page == null) {
                break;
            }
            if (users[page]++ == 0) {
                idle.remove(page);
            }
            pages.add(page);
            before = serials[page];
        }
        lookups += prompt.length;
        hits += (long) pages.size() * pageTokens;
        return pages;
    }

    /** A page for tokens to come. There is one if the caller has reserved it. */
    int take() {
        Integer page = free.poll();
        if (page == null) {
            page = idle.iterator().next();
            idle.remove(page);
            forget(page);
        }
        users[page] = 1;
        return page;
    }

    /**
     * Makes a page that is full known, unless the same contents are.
     *
     * @param previous the page before it, or -1
     */
    void publish(Object root, int previous, int page, long[] tokens, int from) {
        if (contents[page] != null) {
            return;
        }
        long before;
        if (previous < 0) {
            before = beginnings.computeIfAbsent(root, absent -> nextSerial++);
        } else if (serials[previous] != 0) {
            before = serials[previous];
        } else {
            // The page before holds what another page is known for; this one could not be found behind it.
            return;
        }
        Content content = content(before, tokens, from);
        if (known.putIfAbsent(content, page) == null) {
            contents[page] = content;
            serials[page] = nextSerial++;
        }
    }

    private Content content(long before, long[] tokens, int from) {
        return new Content(
                before, Arrays.stream(tokens, from, from + pageTokens).boxed().toList());
    }

    void release(int page) {
        if (--users[page] == 0) {
            if (contents[page] == null) {
                free.add(page);
            } else {
                idle.add(page);
            }
        }
    }

    private void forget(int page) {
        known.remove(contents[page], page);
        contents[page] = null;
        serials[page] = 0;
        if (known.isEmpty()) {
            beginnings.clear();
        }
    }
}
