package postgrestest

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// A Cut is where a connection is lost.
type Cut int

const (
	BeforeRequest Cut = iota // the server never sees the request
	AfterRequest             // the server has the request and carries it out, but can answer nobody
	BeforeReply              // the server has carried it out, and all of the reply is lost
	InReply                  // of the reply, the end is lost: that it is committed
	Hang                     // the server has carried it out; nobody closes the connection, and nothing comes
)

// Cuts are all there are.
var Cuts = []Cut{BeforeRequest, AfterRequest, BeforeReply, InReply, Hang}

func (c Cut) String() string {
	return [...]string{"before the request", "after the request", "before the reply", "in the reply", "hang"}[c]
}

// Proxy stands between clients and a server, and can lose their connections. A request is all
// that is sent until the client waits for a reply, that is until Sync or Query (PostgreSQL
// manual, 55.2); a statement that is new to a connection takes two, to prepare it and to run it.
type Proxy struct {
	server, dir string
	listener    net.Listener

	mu    sync.Mutex
	armed bool
	cut   Cut
	skip  int
	fired bool
	open  map[*relay]bool
	wg    sync.WaitGroup
}

// Proxy returns a proxy for the server, which ends with the test.
func (s *Server) Proxy(t testing.TB) *Proxy {
	t.Helper()
	p := &Proxy{server: socket(s.dir), dir: folder(t), open: make(map[*relay]bool)}
	var err error
	if p.listener, err = net.Listen("unix", socket(p.dir)); err != nil {
		t.Fatalf("postgrestest: %v", err)
	}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		p.listener.Close()
		p.Drop()
		p.wg.Wait()
		os.RemoveAll(p.dir)
	})
	return p
}

// socket returns the name of the socket in a folder.
func socket(dir string) string { return filepath.Join(dir, fmt.Sprintf(".s.PGSQL.%d", port)) }

// URL returns the URL of a database, as of [Server.Database], through the proxy.
func (p *Proxy) URL(database string) string {
	return strings.Replace(database, filepath.Dir(p.server), p.dir, 1)
}

// Arm has the connection lost at the next request on any connection, after as many as skip.
func (p *Proxy) Arm(c Cut, skip int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.armed, p.cut, p.skip, p.fired = true, c, skip, false
}

// Disarm ends Arm, and reports whether a connection has been lost since.
func (p *Proxy) Disarm() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.armed = false
	return p.fired
}

// Drop closes all connections.
func (p *Proxy) Drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for r := range p.open {
		r.close()
	}
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("unix", p.server)
		if err != nil {
			client.Close()
			continue
		}
		r := &relay{proxy: p, client: client, server: server, cutAt: -1}
		p.mu.Lock()
		p.open[r] = true
		p.mu.Unlock()
		p.wg.Go(func() {
			defer func() {
				r.close()
				p.mu.Lock()
				delete(p.open, r)
				p.mu.Unlock()
			}()
			p.wg.Go(r.replies)
			r.requests()
		})
	}
}

// next counts a request, and returns where to cut if this is the one.
func (p *Proxy) next() (Cut, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.armed {
		return 0, false
	}
	if p.skip--; p.skip >= 0 {
		return 0, false
	}
	p.armed, p.fired = false, true
	return p.cut, true
}

// relay is one connection.
type relay struct {
	proxy          *Proxy
	client, server net.Conn

	mu    sync.Mutex
	cutAt int // in the reply to this request, if not negative; 0 is the start of the session
	cut   Cut
}

func (r *relay) close() {
	r.client.Close()
	r.server.Close()
}

// requests passes on what the client sends.
func (r *relay) requests() {
	in := bufio.NewReader(r.client)
	var all []byte // of this request
	for n := 0; ; {
		kind, message, err := read(in, n == 0)
		if err != nil {
			return
		}
		all = append(all, message...)
		switch kind {
		case 'S', 'Q':
			cut, here := r.proxy.next()
			if here && cut == BeforeRequest {
				return
			}
			r.mu.Lock()
			if here {
				r.cut, r.cutAt = cut, n
			}
			r.mu.Unlock()
			_, err = r.server.Write(all)
			if err != nil || here && cut == AfterRequest {
				return
			}
			all = all[:0]
			n++
		case 0:
			n++
			fallthrough
		case 'p', 'X', 'H': // of a password, the end, and what is not the end of a request
			if _, err := r.server.Write(all); err != nil {
				return
			}
			all = all[:0]
		}
	}
}

// replies passes on what the server sends.
func (r *relay) replies() {
	in := bufio.NewReader(r.server)
	for n := 0; ; {
		kind, message, err := read(in, false)
		if err != nil {
			r.close()
			return
		}
		r.mu.Lock()
		cut, here := r.cut, r.cutAt == n
		r.mu.Unlock()
		last := kind == 'Z' // ReadyForQuery
		switch {
		case here && cut == Hang:
			io.Copy(io.Discard, in) // until the client has had enough
			return
		case here && last:
			r.close()
			return
		case here && cut == BeforeReply:
			continue
		}
		if _, err := r.client.Write(message); err != nil {
			r.close()
			return
		}
		if last {
			n++
		}
	}
}

// read reads one message. The first that a client sends has no kind.
func read(in *bufio.Reader, first bool) (kind byte, message []byte, err error) {
	header := make([]byte, 5)
	if first {
		header = header[:4]
	}
	if _, err := io.ReadFull(in, header); err != nil {
		return 0, nil, err
	}
	if !first {
		kind = header[0]
	}
	n := int(binary.BigEndian.Uint32(header[len(header)-4:])) - 4
	if n < 0 || n > 1<<28 {
		return 0, nil, fmt.Errorf("message of %d bytes", n)
	}
	message = append(header, make([]byte, n)...)
	_, err = io.ReadFull(in, message[len(header):])
	return kind, message, err
}
