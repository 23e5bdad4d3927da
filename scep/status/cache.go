package status

import (
	"container/list"
	"sync"
)

// cache keeps the answers that were used last.
type cache struct {
	limit int

	mu    sync.Mutex
	items map[string]*list.Element
	order list.List // of *item, the one used last in front
}

type item struct {
	key string
	a   *answer
}

func newCache(limit int) *cache { return &cache{limit: limit, items: map[string]*list.Element{}} }

// get returns the answer under key, or nil.
func (c *cache) get(key string) *answer {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, found := c.items[key]
	if !found {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(*item).a
}

// put keeps a under key, and forgets the one that was not used for longest if there are too many.
func (c *cache) put(key string, a *answer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, found := c.items[key]; found {
		e.Value.(*item).a = a
		c.order.MoveToFront(e)
		return
	}
	if c.limit <= 0 {
		return
	}
	if len(c.items) >= c.limit {
		last := c.order.Back()
		c.order.Remove(last)
		delete(c.items, last.Value.(*item).key)
	}
	c.items[key] = c.order.PushFront(&item{key, a})
}

func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.items)
	c.order.Init()
}
