package scep_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// TestQueue has requests wait for approval. Some are approved, some denied, and some forgotten until
// it is too late. The depot knows who decided and why; no device is told.
func TestQueue(t *testing.T) {
	for _, st := range stores {
		t.Run(st.name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			s := st.open(t)
			ca := sceptest.NewCA(t)
			ra := ca.Certificate()
			var later atomic.Int64
			var log bytes.Buffer
			h, err := scep.New(scep.Config{
				CA: ca, Depot: s, Challenge: sceptest.Pend("x"), ApprovalWindow: time.Hour,
				Log:  slog.New(slog.NewTextHandler(&log, nil)),
				Time: func() time.Time { return time.Now().Add(time.Duration(later.Load())) },
			})
			if err != nil {
				t.Fatal(err)
			}
			base := newDevice(t, sceptest.RSA(1), "queue", "x")
			devices := map[string]*device{}
			for i := range 32 {
				d := *base
				d.id = fmt.Sprintf("device %02d", i) // another transaction: another request
				devices[d.id] = &d
				if a := d.send(t, h, d.pkcsReq(t, ra), ra); a.status != "3" {
					t.Fatalf("%s: %v, want PENDING", d.id, a)
				}
			}

			// The queue is read by pages, while it gets shorter.
			var queue []*scep.Record
			fates := map[string]int{}
			alice := func(rec *scep.Record) scep.Decision {
				return scep.Decision{By: "alice", Remark: "asset of " + rec.TransactionID}
			}
			const approved, denied, polls, swept = 0, 1, 2, 3
			for q := (scep.Query{State: scep.Pending, Limit: 7}); ; {
				page, err := s.List(ctx, q)
				if err != nil {
					t.Fatal(err)
				}
				if len(page) == 0 {
					break
				}
				for _, rec := range page {
					q.After = rec.ID
					fates[rec.TransactionID] = len(queue) % 4
					queue = append(queue, rec)
					switch fates[rec.TransactionID] {
					case approved:
						_, err = h.Approve(ctx, rec.ID, alice(rec))
					case denied:
						err = h.Deny(ctx, rec.ID, scep.Reject(scep.BadRequest, "not ours"), alice(rec))
					}
					if err != nil {
						t.Fatal(err)
					}
				}
			}
			if len(queue) != len(devices) || len(fates) != len(devices) {
				t.Fatalf("%d requests were listed, %d different ones; want %d", len(queue), len(fates), len(devices))
			}

			if n, err := h.Expire(ctx); n != 0 || err != nil {
				t.Fatalf("Expire before the time: %d, %v", n, err)
			}
			later.Store(int64(time.Hour + time.Minute))
			check := func(rec *scep.Record) {
				t.Helper()
				now, err := s.Get(ctx, rec.ID)
				if err != nil {
					t.Fatal(err)
				}
				d := devices[rec.TransactionID]
				a := d.send(t, h, d.certPoll(t, ra), ra)
				switch fates[d.id] {
				case approved:
					if now.State != scep.Issued || now.DecidedBy != "alice" || now.Remark != alice(rec).Remark || a.cert == nil {
						t.Errorf("approved: %v by %q, %q; its device: %v", now.State, now.DecidedBy, now.Remark, a)
					}
				case denied:
					if now.State != scep.Denied || now.DecidedBy != "alice" || now.Remark != alice(rec).Remark || a.failInfo != "2" || a.text != "not ours" {
						t.Errorf("denied: %v by %q, %q; its device: %v", now.State, now.DecidedBy, now.Remark, a)
					}
				default:
					if a.failInfo != "2" || !strings.Contains(a.text, "nobody approved") {
						t.Errorf("too late: %v", a)
					}
				}
			}
			for _, rec := range queue {
				if fates[rec.TransactionID] != swept {
					check(rec)
				}
			}
			if n, err := h.Expire(ctx); n != len(queue)/4 || err != nil {
				t.Errorf("Expire: %d, %v; want %d", n, err, len(queue)/4)
			}
			if n, err := h.Expire(ctx); n != 0 || err != nil {
				t.Errorf("Expire again: %d, %v", n, err)
			}
			left, err := s.List(ctx, scep.Query{State: scep.Pending})
			if len(left) > 0 || err != nil {
				t.Errorf("%d still wait, %v", len(left), err)
			}
			for _, rec := range queue {
				// Whoever decides once more, and differently, changes nothing.
				var why *scep.Error
				_, err := h.Approve(ctx, rec.ID, scep.Decision{By: "mallory"})
				if (fates[rec.TransactionID] == approved) != (err == nil) || err != nil && !errors.As(err, &why) {
					t.Errorf("approved again: %v", err)
				}
				err = h.Deny(ctx, rec.ID, nil, scep.Decision{By: "mallory"})
				if (fates[rec.TransactionID] == approved) == (err == nil) {
					t.Errorf("denied again: %v", err)
				}
				check(rec)
			}
			for _, want := range []string{"operation=Approve", "operation=Deny", `by=alice remark="asset of device`, "operation=Expire"} {
				if !strings.Contains(log.String(), want) {
					t.Errorf("the log does not say %s", want)
				}
			}
		})
	}
}

// TestTooLate approves what has waited too long.
func TestTooLate(t *testing.T) {
	var later atomic.Int64
	h, s, _, _, id := waiting(t, func(c *scep.Config) {
		c.Time = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	})
	later.Store(int64(30*24*time.Hour - time.Minute)) // the default
	if _, err := h.Expire(t.Context()); err != nil || only(t, s).State != scep.Pending {
		t.Fatalf("%v, %v", only(t, s).State, err)
	}
	later.Store(int64(30*24*time.Hour + time.Minute))
	var why *scep.Error
	if cert, err := h.Approve(t.Context(), id, scep.Decision{By: "alice"}); !errors.As(err, &why) || cert != nil {
		t.Fatalf("approved too late: %v, want a refusal", err)
	}
	if rec := only(t, s); rec.State != scep.Denied || rec.Serial != nil || rec.DecidedBy != "" {
		t.Errorf("%v, serial number %v, by %q", rec.State, rec.Serial, rec.DecidedBy)
	}
}
