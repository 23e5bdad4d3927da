package scep

// Waiting returns how many requests wait for another of the same message.
func (h *Handler) Waiting() (n int) {
	h.locks.mu.Lock()
	defer h.locks.mu.Unlock()
	for _, k := range h.locks.held {
		n += k.waiters - 1 // that works
	}
	return n
}
