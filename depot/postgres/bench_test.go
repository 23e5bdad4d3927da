package postgres_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/scepkit/scepkit/depot/internal/loadtest"
	"github.com/scepkit/scepkit/depot/postgres"
	"github.com/scepkit/scepkit/depot/postgres/postgrestest"
)

// BenchmarkIssue measures enrolments against a server that writes to the disk.
func BenchmarkIssue(b *testing.B) {
	server := postgrestest.Start(b, postgrestest.Durable)
	db := open(b, postgres.Config{URL: server.Database(b), Timeout: patient})
	var next atomic.Int64
	for _, writers := range []int{1, 8, 32} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			b.ReportAllocs()
			left := int64(b.N)
			var wg sync.WaitGroup
			for range writers {
				wg.Go(func() {
					for atomic.AddInt64(&left, -1) >= 0 {
						if err := loadtest.Issue(b.Context(), db, fmt.Sprint("benchmark ", next.Add(1))); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}
